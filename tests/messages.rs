//! What errors say: who was charged, who refuses, no word of other tenants, and never too much.

use std::error::Error;
use std::io;

use percpu_memcg::error::{BuildError, ReserveError, TreeError};
use percpu_memcg::{
    AllocError, Gfp, Limit, Machine, Memcg, PerCpu, PerCpuAllocator, PerCpuHistogram,
};

/// No message of an error with one path or text is longer: 256 bytes of it, and what stands around.
const LONGEST: usize = 500;

fn limited(pcpu: &PerCpuAllocator, max: u64) -> (Memcg, Memcg) {
    let shared = pcpu.root().create("shared").unwrap();
    let mine = shared.create("mine").unwrap();
    let other = shared.create("other-tenant").unwrap();
    other.charge(777_777).map(std::mem::forget).unwrap();
    shared.set_max(Limit::bytes(shared.current() + max)).unwrap();
    (shared, mine)
}

/// The message and those of the errors below it.
fn whole(error: &dyn Error) -> String {
    let below = error.source().map(|source| format!(": {}", whole(source)));
    format!("{error}{}", below.unwrap_or_default())
}

#[track_caller]
fn names_only(error: &dyn Error, charged: &str) {
    for text in [whole(error), format!("{error:?}"), format!("{error:#?}"), format!("{error:#}")] {
        assert!(!text.contains("other-tenant") && !text.contains(" 777777"), "{text}");
        assert!(text.contains(charged) && text.contains("/shared"), "{text}");
    }
}

#[test]
fn refusal_names_charged_and_refusing_cgroup_and_no_other() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let (shared, mine) = limited(&pcpu, 1000);
    let error = mine.charge(1001).unwrap_err();
    names_only(&error, "/shared/mine");
    assert_eq!((error.charged.as_str(), error.cgroup.as_str()), ("/shared/mine", "/shared"));
    let usage = shared.current();
    let max = usage + 1000;
    assert_eq!(
        error.to_string(),
        format!(
            "cgroup /shared refuses 1001 bytes to /shared/mine: {usage} of {max} bytes are in use"
        )
    );
    let report = error.report().to_string();
    assert!(report.starts_with(&error.to_string()), "{report}");
    assert!(report.contains("; most by /shared/other-tenant 777777"), "{report}");

    let held = mine.charge(10).unwrap();
    names_only(&held.grow(1000).unwrap_err(), "/shared/mine");
    let mut outside = pcpu.root().create("outside").unwrap().charge(2000).unwrap();
    let error = outside.transfer_to(&mine).unwrap_err();
    names_only(&error, "/shared/mine");
    assert_eq!(error.charged, "/shared/mine", "where the bytes were to go");
    let _in = mine.enter();
    names_only(&PerCpu::<[u64; 500]>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap_err(), "/mine");
    drop(held);
    names_only(&mine.account(Vec::<u8>::new()).reserve(5000).unwrap_err(), "/shared/mine");
}

#[test]
fn a_refusal_by_the_cgroup_itself_names_it_once() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(5)).unwrap();
    let error = tenant.charge(6).unwrap_err();
    assert_eq!(error.to_string(), "cgroup /tenant refuses 6 bytes: 0 of 5 bytes are in use");
    assert_eq!(error.charged, "/tenant");
}

#[test]
fn charge_through_removed_cgroup_names_one_that_would_have_paid() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let (_shared, mine) = limited(&pcpu, 100_000);
    let query = mine.create("query").unwrap();
    let held = query.charge(1).unwrap();
    query.remove().unwrap();
    assert_eq!(query.charge(200_000).unwrap_err().charged, "/shared/mine");
    assert_eq!(query.try_charge(200_000).unwrap_err().charged, "/shared/mine");
    assert_eq!(held.grow(200_000).unwrap_err().charged, "/shared/mine");
    let mut outside = pcpu.root().charge(300_000).unwrap();
    assert_eq!(outside.transfer_to(&query).unwrap_err().charged, "/shared/mine");
}

#[test]
fn every_error_that_can_be_a_limit_says_so() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let (shared, mine) = limited(&pcpu, 100);
    assert!(mine.charge(101).unwrap_err().is_limit());
    shared.set_max(Limit::bytes(0)).unwrap();

    let error: TreeError = mine.create("query").unwrap_err();
    assert!(error.is_limit(), "{error}");
    names_only(&error, "/shared/mine");
    assert!(error.to_string().contains("cgroup /shared refuses"), "the limit: {error}");
    assert!(!mine.create("a/b").unwrap_err().is_limit());

    let error = mine.files().create("query").unwrap_err();
    assert!(error.is_limit() && error.to_string().contains("cgroup /shared refuses"), "{error}");
    names_only(&error, "/shared/mine");
    assert!(!mine.files().read("nothing").unwrap_err().is_limit());

    let _in = mine.enter();
    let error = PerCpuHistogram::<1>::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, [1]).unwrap_err();
    assert!(error.is_limit() && error.to_string().contains("cgroup /shared refuses"), "{error}");
    names_only(&error, "/shared/mine");
    assert!(!PerCpuHistogram::new_in(&pcpu, Gfp::KERNEL, [2, 1]).unwrap_err().is_limit());

    let error: AllocError = PerCpu::<u64>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap_err();
    assert!(error.is_limit());
    let error: ReserveError = mine.account(Vec::<u64>::new()).reserve(5).unwrap_err();
    assert!(error.is_limit());
}

/// Limit, memory or an illegal argument: at most one of them, and the kind of the `io::Error`.
#[test]
fn every_error_answers_the_same_questions() {
    macro_rules! asked {
        ($error:expr) => {{
            let error = $error;
            let answers = (error.is_limit(), error.is_memory(), error.is_invalid());
            let (errno, text) = (error.errno(), error.to_string());
            let error: io::Error = error.into();
            assert_eq!(error.kind(), io::Error::from_raw_os_error(errno).kind(), "{text}");
            assert_eq!(error.to_string(), text);
            answers
        }};
    }
    const LIMIT: (bool, bool, bool) = (true, false, false);
    const MEMORY: (bool, bool, bool) = (false, true, false);
    const INVALID: (bool, bool, bool) = (false, false, true);
    const OTHER: (bool, bool, bool) = (false, false, false);
    let pcpu = PerCpuAllocator::new().unwrap();
    let (shared, mine) = limited(&pcpu, 100);
    assert_eq!(asked!(mine.charge(101).unwrap_err()), LIMIT);
    shared.set_max(Limit::bytes(0)).unwrap();
    assert_eq!(asked!(PerCpu::<u64>::zeroed_for(&mine).unwrap_err()), LIMIT);
    assert_eq!(
        asked!(PerCpu::<[u64; 1 << 20]>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap_err()),
        INVALID
    );
    assert_eq!(asked!(mine.account(Vec::<u64>::new()).reserve(5).unwrap_err()), LIMIT);
    let by_heap = pcpu.root().account(Vec::<u64>::new()).reserve(usize::MAX).unwrap_err();
    assert_eq!(asked!(by_heap), MEMORY);
    assert_eq!(asked!(mine.create("query").unwrap_err()), LIMIT);
    assert_eq!(asked!(mine.create("a/b").unwrap_err()), INVALID);
    assert_eq!(asked!(mine.find("nobody").unwrap_err()), OTHER);
    assert_eq!(asked!(mine.files().create("query").unwrap_err()), LIMIT);
    assert_eq!(asked!(mine.files().write("memory.max", "64 M").unwrap_err()), INVALID);
    assert_eq!(asked!(mine.files().read("nothing").unwrap_err()), OTHER);
    assert_eq!(asked!("64 M".parse::<Limit>().unwrap_err()), INVALID);
    assert_eq!(asked!(mine.reclaim(1000).unwrap_err()), OTHER);
    let mut charge = pcpu.root().charge(1).unwrap();
    assert_eq!(asked!(charge.shrink(2).unwrap_err()), INVALID);
    assert_eq!(asked!(charge.merge(mine.charge(0).unwrap()).unwrap_err()), INVALID);

    let histogram = |memcg: &Memcg, bounds| PerCpuHistogram::<2>::new_for(memcg, bounds);
    assert_eq!(asked!(histogram(&mine, [1, 2]).unwrap_err()), LIMIT);
    assert_eq!(asked!(histogram(&mine, [2, 1]).unwrap_err()), INVALID);
    assert_eq!(asked!(Machine::uniform(0).unwrap_err()), INVALID);
    let builder = PerCpuAllocator::builder().unit_size(1 << 30);
    assert_eq!(asked!(builder.build().unwrap_err()), INVALID);
    let machine = Machine::uniform(2).unwrap();
    machine.faults().fail_all(None);
    let builder = PerCpuAllocator::builder().machine(machine);
    let refused = builder.build().map(drop).unwrap_err();
    let BuildError::Memory(mapping) = refused else { panic!("{refused}") };
    assert_eq!(asked!(mapping), MEMORY);
    assert_eq!(asked!(refused), MEMORY);
}

#[test]
fn an_error_about_a_long_text_is_short() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let files = pcpu.files();
    // The last ones would be cut within a character, and grow when they are escaped.
    for unit in ["9", "x", "é", "日", "a\u{1F980}", "\u{1}", "\"", "\u{10ffff}"] {
        let long = unit.repeat((1 << 20) / unit.len());
        let errors: Vec<Box<dyn Error>> = vec![
            Box::new(long.parse::<Limit>().unwrap_err()),
            Box::new(tenant.create(&long).unwrap_err()),
            Box::new(tenant.create_scoped(&long).unwrap_err()),
            Box::new(pcpu.root().find(&long).unwrap_err()),
            Box::new(pcpu.cgroup(&format!("tenant/{long}")).unwrap_err()),
            Box::new(files.read(&long).unwrap_err()),
            Box::new(files.list(&long).unwrap_err()),
            Box::new(files.create(&long).unwrap_err()),
            Box::new(files.write("tenant/memory.max", &long).unwrap_err()),
            Box::new(files.write("tenant/memory.high", &long).unwrap_err()),
            Box::new(files.write("tenant/memory.oom.group", &long).unwrap_err()),
            Box::new(files.write("tenant/memory.reclaim", &format!("1 {long}")).unwrap_err()),
            Box::new(files.write("tenant/cgroup.max.depth", &long).unwrap_err()),
            Box::new(files.write("tenant/cgroup.procs", &long).unwrap_err()),
            Box::new(files.write("tenant/cgroup.type", &long).unwrap_err()),
            Box::new(files.write("tenant/cgroup.kill", &long).unwrap_err()),
            Box::new(files.write("cgroup.subtree_control", &long).unwrap_err()),
            Box::new(files.write(&format!("tenant/memory.max/{long}"), "1").unwrap_err()),
            Box::new(files.create(&format!("tenant/cgroup.procs/{long}")).unwrap_err()),
        ];
        for error in errors {
            let text = whole(&*error);
            assert!(text.len() < 2 * LONGEST, "{} bytes: {:.80}", text.len(), text);
            let kept = format!("{error:?}");
            assert!(kept.len() < 64 << 10, "{} bytes: {:.80}", kept.len(), kept);
        }
    }
    let error = "9".repeat(1 << 20).parse::<Limit>().unwrap_err();
    let text = error.to_string();
    assert!(text.contains("999…") && text.len() < LONGEST, "{text}");
    assert!(error.is_out_of_range());
    assert_eq!(tenant.create(&"x".repeat(1 << 20)).unwrap_err().errno(), libc::ENAMETOOLONG);
    assert_eq!(tenant.create(&"é".repeat(128)).unwrap_err().errno(), libc::ENAMETOOLONG);
}

#[test]
fn messages_about_deep_cgroups_are_short() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let name = "日".repeat(85); // 255 bytes
    let mut deep = pcpu.root();
    for _ in 0..200 {
        deep = deep.create(&name).unwrap();
    }
    deep.set_max(Limit::bytes(1000)).unwrap();
    let errors: Vec<Box<dyn Error>> = vec![
        Box::new(deep.charge(2000).unwrap_err()),
        Box::new(deep.parent().unwrap().remove().unwrap_err()),
        Box::new(deep.files().write("memory.max", "no").unwrap_err()),
        Box::new(deep.files().read("memory.reclaim").unwrap_err()),
        Box::new(deep.parent().unwrap().create(&name).unwrap_err()),
    ];
    for error in errors {
        let text = whole(&*error);
        assert!(text.len() < 3 * LONGEST, "{} bytes: {text}", text.len());
        assert!(format!("{error:?}").len() < 64 << 10);
    }
    deep.set_max_depth(Some(0)).unwrap();
    let errors = [deep.create("mine").unwrap_err(), {
        deep.set_max_depth(None).unwrap();
        deep.set_max(Limit::bytes(0)).unwrap();
        deep.create("mine").unwrap_err()
    }];
    for error in errors {
        let text = whole(&error);
        assert!(text.len() < 6 * LONGEST && text.contains('…'), "{} bytes: {text}", text.len());
    }
    deep.set_max(Limit::bytes(1000)).unwrap();
    for text in [deep.to_string(), format!("{deep:?}")] {
        assert!(text.len() < LONGEST, "{} bytes: {text}", text.len());
    }
    let mine = deep.create("mine").unwrap();
    let report = mine.charge(2000).unwrap_err().report().to_string();
    assert!(report.len() < 5 * LONGEST, "{} bytes: {report}", report.len());
    let left = mine.remove_with_report().unwrap().to_string();
    assert!(left.len() < 2 * LONGEST, "{} bytes: {left}", left.len());
}
