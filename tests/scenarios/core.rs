//! `test_core.c`, and `subtree_control` of `test_memcontrol.c`.

use std::sync::mpsc;
use std::thread;

use crate::cgroup;

/// Whether a child has the controller depends on its parent's `cgroup.subtree_control`. Here there
/// is one controller, and every cgroup has it.
#[test]
fn subtree_control() {
    let (pcpu, parent) = cgroup("parent");
    let child = parent.create("child").unwrap();
    for memcg in [&pcpu.root(), &parent, &child] {
        assert_eq!(memcg.files().read("cgroup.controllers").unwrap(), "memory\n");
        assert_eq!(memcg.files().read("cgroup.subtree_control").unwrap(), "memory\n");
        memcg.files().write("cgroup.subtree_control", "+memory").unwrap();
        let refused = memcg.files().write("cgroup.subtree_control", "-memory").unwrap_err();
        assert_eq!(refused.errno(), libc::EOPNOTSUPP);
    }
}

/// `test_cgcore_destroy`: a cgroup is removed as soon as its members have ended.
#[test]
fn destroy() {
    let (pcpu, memcg) = cgroup("destroy");
    let files = pcpu.files();
    for _ in 0..10 {
        let (leave, wait) = mpsc::channel::<()>();
        let (attached, is_attached) = mpsc::channel();
        let member = memcg.clone();
        let thread = thread::spawn(move || {
            member.files().write("cgroup.procs", "0").unwrap();
            attached.send(()).unwrap();
            wait.recv().unwrap_err()
        });
        is_attached.recv().unwrap();
        assert_ne!(files.read("destroy/cgroup.procs").unwrap(), "");
        assert_eq!(files.remove("destroy").unwrap_err().errno(), libc::EBUSY);
        drop(leave);
        thread.join().unwrap();
        assert_eq!(files.read("destroy/cgroup.procs").unwrap(), "");
    }
    files.remove("destroy").unwrap();
    assert_eq!(files.read("destroy/cgroup.procs").unwrap_err().errno(), libc::ENOENT);
    assert_eq!(memcg.files().read("cgroup.procs").unwrap_err().errno(), libc::ENODEV);
}

/// `test_cgcore_populated`: `populated` of A, B and C while a member comes to C and goes; D is
/// beside it. A removed cgroup has no file any more.
#[test]
fn populated() {
    let (_pcpu, a) = cgroup("a");
    let b = a.create("b").unwrap();
    let [c, d] = ["c", "d"].map(|name| b.create(name).unwrap());
    let populated = || {
        [&a, &b, &c, &d].map(|memcg| {
            let text = memcg.files().read("cgroup.events").unwrap();
            text.contains("populated 1\n")
        })
    };
    assert_eq!(populated(), [false; 4]);
    thread::scope(|scope| {
        let member = || {
            c.attach_thread().unwrap();
            assert_eq!(populated(), [true, true, true, false]);
            d.attach_thread().unwrap();
            assert_eq!(populated(), [true, true, false, true]);
        };
        scope.spawn(member).join().unwrap();
    });
    assert_eq!(populated(), [false; 4]);
    let events = d.files().open("cgroup.events").unwrap();
    d.remove().unwrap();
    assert_eq!(events.read().unwrap_err().errno(), libc::ENODEV);
}

/// `test_cgcore_proc_migration` moves a whole process. Here members are threads of one process, and
/// each moves itself: no other thread's current cgroup changes under its feet.
#[test]
fn proc_migration() {
    let (_pcpu, parent) = cgroup("parent");
    let [source, target] = ["source", "target"].map(|name| parent.create(name).unwrap());
    thread::scope(|scope| {
        let member = || {
            source.attach_thread().unwrap();
            let id = source.files().read("cgroup.procs").unwrap();
            let refused = thread::scope(|scope| {
                let other = || target.files().write("cgroup.procs", &id).unwrap_err().errno();
                scope.spawn(other).join().unwrap()
            });
            assert_eq!(refused, libc::EOPNOTSUPP);
            target.files().write("cgroup.procs", &id).unwrap();
            assert_eq!(target.files().read("cgroup.procs").unwrap(), id);
            assert_eq!(source.files().read("cgroup.procs").unwrap(), "");
        };
        scope.spawn(member).join().unwrap();
    });
}

/// `test_cgcore_no_internal_process_constraint`: in the kernel a cgroup with controlled children has
/// no members of its own. Here it may: what threads charge beside the children counts in it alone.
#[test]
fn internal_threads_are_allowed() {
    let (_pcpu, parent) = cgroup("parent");
    let child = parent.create("child").unwrap();
    thread::scope(|scope| {
        let member = || {
            parent.attach_thread().unwrap();
            let held = parent.of_this_thread().charge(100).unwrap();
            assert_eq!((parent.stat().charged, child.current()), (100, 0));
            drop(held);
        };
        scope.spawn(member).join().unwrap();
    });
}

/// Depth and number of cgroups, in the kernel's `EAGAIN`.
#[test]
fn bounds() {
    let (pcpu, parent) = cgroup("parent");
    let files = pcpu.files();
    files.write("parent/cgroup.max.depth", "1").unwrap();
    files.create("parent/a").unwrap();
    assert_eq!(files.create("parent/a/b").unwrap_err().errno(), libc::EAGAIN);
    files.write("parent/cgroup.max.depth", "max").unwrap();
    files.write("parent/cgroup.max.descendants", "2").unwrap();
    files.create("parent/a/b").unwrap();
    assert_eq!(files.create("parent/a/c").unwrap_err().errno(), libc::EAGAIN);
    files.write("parent/cgroup.max.descendants", "0").unwrap(); // those that exist stay
    files.remove("parent/a/b").unwrap();
    assert_eq!(files.create("parent/a/b").unwrap_err().errno(), libc::EAGAIN);
    assert_eq!(parent.nr_descendants(), 1);
}
