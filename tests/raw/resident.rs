//! Where memory really is.

use super::*;

/// Without a page map, as in some sandboxes, there is nothing to look at.
fn residency_can_be_seen() -> bool {
    let seen = File::open("/proc/self/pagemap").is_ok();
    if !seen {
        println!("skipped: /proc/self/pagemap cannot be read");
    }
    seen
}

#[test]
fn copies_of_cpus_that_never_wrote_take_no_memory() {
    if !residency_can_be_seen() {
        return;
    }
    let machine = Machine::uniform(256).unwrap();
    let pcpu = PerCpuAllocator::builder().machine(machine).build().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    let mut touched = BTreeSet::new();
    for cycle in 0..4 {
        let mut areas: Vec<_> = (0..400)
            .map(|nth| {
                let align = [8, 64, 128, 256][nth % 4];
                let gfp = [Gfp::KERNEL, Gfp::KERNEL_ACCOUNT][nth / 4 % 2];
                Area::new(&pcpu, 700 + 50 * cycle, align, gfp).unwrap()
            })
            .collect();
        assert!(areas.iter().all(|area| area.holds(0)), "also maps the zero page everywhere");
        for area in &mut areas {
            for cpu in [3, 200].map(CpuId::new) {
                area.fill_copy(cpu, 0xff);
                touched.extend(area.pages(cpu));
            }
        }
        let resident = resident(&pages_of_all_copies(&areas));
        assert!(resident.is_subset(&touched), "cycle {cycle}: only what the two CPUs wrote");
        assert!(resident.len() >= 2 * 400 * 700 / page_size(), "the measurement sees memory");
        areas.into_iter().for_each(Area::free);
    }
}

#[test]
fn eager_population_backs_every_copy_at_once() {
    if !residency_can_be_seen() {
        return;
    }
    let pcpu = builder().populate(Populate::Eager).build().unwrap();
    for align in [8, 4096] {
        let areas: Vec<_> =
            (0..20).map(|_| Area::new(&pcpu, 5000, align, Gfp::KERNEL).unwrap()).collect();
        let pages = pages_of_all_copies(&areas);
        assert_eq!(resident(&pages), pages, "aligned to {align}");
        areas.into_iter().for_each(Area::free);
    }
}

#[test]
fn lazy_population_backs_nothing() {
    if !residency_can_be_seen() {
        return;
    }
    let pcpu = builder().populate(Populate::Lazy).build().unwrap();
    let areas: Vec<_> = (0..40).map(|_| Area::new(&pcpu, 5000, 8, Gfp::KERNEL).unwrap()).collect();
    assert!(resident(&pages_of_all_copies(&areas)).is_empty());
    areas.into_iter().for_each(Area::free);
}

#[test]
fn whole_population_backs_whole_chunk_and_gives_no_part_back() {
    if !residency_can_be_seen() {
        return;
    }
    let pcpu = builder().populate(Populate::Whole).build().unwrap();
    let _first_chunk = pcpu.alloc(layout(28 << 10, 4), Gfp::KERNEL).unwrap();
    let one = Area::new(&pcpu, 4, 4, Gfp::KERNEL).unwrap();
    let unit_pages = |cpu: &CpuId| {
        let start = one.start(*cpu).addr().get() - one.place().offset;
        start / page_size()..=(start + (64 << 10) - 1) / page_size()
    };
    let pages: BTreeSet<usize> = one.cpus().iter().flat_map(unit_pages).collect();
    assert_eq!(resident(&pages), pages);
    let more: Vec<_> = (0..50).map(|_| Area::new(&pcpu, 1000, 4, Gfp::KERNEL).unwrap()).collect();
    more.into_iter().for_each(Area::free);
    assert_eq!(resident(&pages), pages);
    one.free();
}

/// Writes every copy of about 800 KiB a CPU, then frees all but a few bytes in each chunk.
fn free_most(profile: Profile) -> (usize, usize, usize) {
    let pcpu = builder().unit_size(256 << 10).profile(profile).build().unwrap();
    let mut areas: Vec<_> =
        (0..800).map(|_| Area::new(&pcpu, 1024, 4, Gfp::KERNEL).unwrap()).collect();
    areas.iter_mut().for_each(|area| area.fill(0xff));
    let pages = pages_of_all_copies(&areas);
    let full = resident(&pages).len();
    let (kept, freed): (Vec<_>, Vec<_>) =
        areas.into_iter().enumerate().partition(|(nth, _)| nth % 200 == 0);
    freed.into_iter().for_each(|(_, area)| area.free());
    let most_freed = resident(&pages).len();
    assert!(kept.iter().all(|(_, area)| area.holds(0xff)), "what is live keeps its bytes");
    kept.into_iter().for_each(|(_, area)| area.free());
    // What the last ones left to later ones.
    pcpu.balance();
    (full, most_freed, resident(&pages).len())
}

#[test]
fn depopulation_and_destruction_return_memory() {
    if !residency_can_be_seen() {
        return;
    }
    for profile in [Profile::DEFAULT, Profile::LINUX_6_13] {
        let (full, most_freed, all_freed) = free_most(profile);
        assert!(full >= 3 * 800 * 1024 / page_size());
        assert!(most_freed < full / 2, "{profile:?}: {most_freed} of {full} pages");
        assert!(all_freed < full / 2, "{profile:?}: {all_freed} of {full} pages");
    }
}

#[test]
fn without_depopulation_only_destruction_returns_memory() {
    if !residency_can_be_seen() {
        return;
    }
    let (full, most_freed, all_freed) = free_most(Profile::LINUX_5_10);
    assert_eq!(most_freed, full, "Linux 5.10 keeps the pages of chunks in use");
    assert!(all_freed < full / 2, "{all_freed} of {full} pages");
}
