//! What cannot be allocated.

use super::*;

#[test]
fn too_large_types_are_refused_before_the_initialiser_runs() {
    #[repr(align(8192))]
    struct OverAligned;
    #[repr(align(8192))]
    struct OverAlignedByte(#[expect(dead_code, reason = "only its alignment matters")] u8);

    fn refusal<T>(pcpu: &PerCpuAllocator) -> AllocError {
        let before = pcpu.stats();
        let refused = PerCpu::<T>::new_in(pcpu, Gfp::KERNEL_ACCOUNT, |_| panic!("initialised"));
        let Err(error) = refused else { panic!("allocated") };
        assert_eq!(pcpu.stats(), before);
        assert!(error.is_invalid(), "{error}");
        error
    }
    let pcpu = with_holes();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();

    let zero = AllocError::Invalid(InvalidRequest::ZeroSize);
    assert_eq!(refusal::<()>(&pcpu), zero);
    assert_eq!(refusal::<[u64; 0]>(&pcpu), zero);
    assert_eq!(refusal::<OverAligned>(&pcpu), zero);
    let large = AllocError::Invalid(InvalidRequest::TooLarge { size: 32_769 });
    assert_eq!(refusal::<[u8; 32_769]>(&pcpu), large);
    let align = AllocError::Invalid(InvalidRequest::BadAlign { align: 8192 });
    assert_eq!(refusal::<OverAlignedByte>(&pcpu), align);
    assert_eq!((tenant.current(), tenant.peak()), (0, 0));
}

#[test]
fn the_initialiser_is_not_called_without_an_area() {
    let pcpu = with_holes();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    let attempt = |gfp| {
        PerCpu::new_in(&pcpu, gfp, |_| -> u64 { panic!("initialised") }).map(drop).unwrap_err()
    };
    assert!(attempt(Gfp::NOWAIT | Gfp::ACCOUNT).is_no_room(), "no accounted chunk exists yet");

    pcpu.machine().faults().fail_all(None);
    assert!(attempt(Gfp::KERNEL_ACCOUNT).is_memory());
    pcpu.machine().faults().clear();

    tenant.set_max(Limit::bytes(0)).unwrap();
    assert!(attempt(Gfp::KERNEL_ACCOUNT).is_limit());
    assert_nothing_lives(&pcpu);
}
