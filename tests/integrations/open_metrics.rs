//! OpenMetrics text, read by the rules of its specification, and folded stacks.

use std::collections::{BTreeMap, BTreeSet};

use percpu_memcg::{Limit, PerCpu};

use super::{HOSTILE, tree};

/// The samples of a text: by name, and by the names and values of labels.
#[derive(Debug, Default)]
pub(super) struct Samples(BTreeMap<(String, BTreeMap<String, String>), f64>);

struct Family {
    name: String,
    kind: String,
}

impl Samples {
    /// Reads a text, and panics where it breaks a rule.
    pub(super) fn read(text: &str) -> Self {
        let (mut samples, mut names) = (Samples::default(), BTreeSet::new());
        let mut family: Option<Family> = None;
        let body = text.strip_suffix("# EOF\n").expect("the end mark");
        assert!(body.is_empty() || body.ends_with('\n'));
        for line in body.split_terminator('\n') {
            if let Some(rest) = line.strip_prefix("# ") {
                let mut parts = rest.splitn(3, ' ');
                let [keyword, name, value] = [(); 3].map(|()| parts.next().expect("three parts"));
                assert_name(name);
                if family.as_ref().is_none_or(|family| family.name != name) {
                    assert!(names.insert(name.to_owned()), "{name} comes twice");
                    family = Some(Family { name: name.into(), kind: String::new() });
                }
                match keyword {
                    "TYPE" => family.as_mut().unwrap().kind = value.into(),
                    "UNIT" => assert!(name.ends_with(&format!("_{value}")), "{line}"),
                    "HELP" => assert!(!value.is_empty() && !value.contains(['\\', '"'])),
                    _ => panic!("{line}"),
                }
                continue;
            }
            let (name, labels, value) = sample(line);
            let family = family.as_ref().expect("a family");
            let suffix = name.strip_prefix(&family.name).unwrap_or_else(|| panic!("{line}"));
            match (&*family.kind, suffix) {
                ("gauge", "") | ("counter", "_total") => (),
                ("histogram", "_sum" | "_count") => (),
                ("histogram", "_bucket") => assert!(labels.contains_key("le")),
                other => panic!("{other:?}: {line}"),
            }
            assert!(samples.0.insert((name, labels), value).is_none(), "{line} comes twice");
        }
        samples
    }

    pub(super) fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        self.0.get(&(name.to_owned(), labels.collect())).copied()
    }

    /// How many there are of a name.
    pub(super) fn count(&self, name: &str) -> usize {
        self.0.keys().filter(|(of, _)| of == name).count()
    }

    /// The values of `le` and the counts of a histogram.
    #[cfg(feature = "prometheus-client")]
    pub(super) fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let of_name = self.0.iter().filter(|((of, _), _)| *of == format!("{name}_bucket"));
        let le = |le: &str| if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() };
        let mut buckets: Vec<_> =
            of_name.map(|((_, labels), count)| (le(&labels["le"]), *count)).collect();
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        assert_eq!(buckets.last().unwrap().0, f64::INFINITY);
        buckets
    }
}

fn assert_name(name: &str) {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
    assert!(
        name.chars().all(is_legal) && !name.starts_with(|c: char| c.is_ascii_digit()),
        "{name}"
    );
}

/// Splits a line into name, labels and value.
fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let mut labels = BTreeMap::new();
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line}"));
    let (name, mut rest) = line.split_at(end);
    assert_name(name);
    if let Some(mut inside) = rest.strip_prefix('{') {
        rest = loop {
            let (label, after) = inside.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert_name(label);
            let (value, after) = unescaped(after);
            assert!(labels.insert(label.into(), value).is_none(), "{line}");
            match after.strip_prefix(',') {
                Some(next) => inside = next,
                None => break after.strip_prefix('}').unwrap_or_else(|| panic!("{line}")),
            }
        };
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
    (name.into(), labels, value.parse().unwrap_or_else(|_| panic!("{line}")))
}

/// The value up to the closing quote, and what follows that.
fn unescaped(text: &str) -> (String, &str) {
    let (mut value, mut chars) = (String::new(), text.chars());
    loop {
        match chars.next().expect("a closing quote") {
            '"' => return (value, chars.as_str()),
            '\\' => value.push(match chars.next() {
                Some('n') => '\n',
                Some(c @ ('\\' | '"')) => c,
                other => panic!("escape of {other:?}"),
            }),
            c => value.push(c),
        }
    }
}

#[test]
fn a_tree_with_hostile_names() {
    let (pcpu, tenant) = tree();
    let hostile = tenant.create(HOSTILE).unwrap();
    hostile.set_max(Limit::bytes(10_000)).unwrap();
    let label: &'static str = format!("{HOSTILE}\n\\n").leak();
    let _held = [hostile.charge(300).unwrap(), hostile.charge(4000).unwrap().labelled(label)];
    let _area = PerCpu::<u64>::zeroed_for(&hostile).unwrap();
    hostile.try_charge(20_000).unwrap_err();
    let snapshot = pcpu.root().snapshot();
    let samples = Samples::read(&snapshot.open_metrics().allocator(&pcpu).to_string());
    let path = &*format!("/tenant/{HOSTILE}");
    let of_path = |name| samples.get(name, &[("cgroup", path)]);
    assert_eq!(of_path("memcg_current_bytes"), Some(4300.0 + 32.0));
    assert_eq!(of_path("memcg_percpu_bytes"), Some(32.0));
    assert_eq!(of_path("memcg_charged_bytes"), Some(4300.0));
    assert_eq!(of_path("memcg_max_bytes"), Some(10_000.0));
    assert_eq!(of_path("memcg_high_bytes"), None, "there is no limit");
    assert_eq!(of_path("memcg_min_bytes"), Some(0.0));
    let labelled = [("cgroup", path), ("label", label)];
    assert_eq!(samples.get("memcg_labelled_bytes", &labelled), Some(4000.0));
    let max = samples.get("memcg_events_total", &[("cgroup", "/tenant"), ("event", "max")]);
    assert_eq!(max, Some(1.0), "events count at the ancestors, too");
    assert_eq!(samples.count("memcg_events_total"), 6 * 3);
    assert_eq!(samples.get("percpu_areas", &[]), Some(pcpu.stats().nr_cur_alloc as f64));
    assert_eq!(samples.get("percpu_live_bytes", &[]), Some(16.0), "8 bytes on two CPUs");

    let depth = Samples::read(&snapshot.open_metrics().depth(1).to_string());
    assert_eq!(depth.count("memcg_current_bytes"), 2);
    assert_eq!(depth.count("percpu_areas"), 0);
    let none = tenant.snapshot().open_metrics().depth(0).to_string();
    assert_eq!(Samples::read(&none).count("memcg_peak_bytes"), 1);
}

/// The bytes of all lines, by their frames.
fn frames(text: &str) -> Vec<(Vec<&str>, u64)> {
    let line = |line: &'_ str| -> (usize, u64) {
        let at = line.rfind(' ').unwrap();
        (at, line[at + 1..].parse().unwrap())
    };
    text.lines().map(|text| (text[..line(text).0].split(';').collect(), line(text).1)).collect()
}

#[test]
fn folded_stacks_are_all_that_is_used() {
    let (pcpu, tenant) = tree();
    let hostile = tenant.create(HOSTILE).unwrap();
    let bracketed = tenant.create("[percpu]").unwrap();
    let label: &'static str = format!("{HOSTILE}\n").leak();
    let _held = [
        pcpu.root().charge(1).unwrap(),
        tenant.charge(20).unwrap().labelled("rows"),
        hostile.charge(300).unwrap().labelled("rows"),
        hostile.charge(4000).unwrap().labelled(label),
        bracketed.charge(50_000).unwrap(),
    ];
    let _area = PerCpu::<u64>::zeroed_for(&hostile).unwrap();
    let snapshot = pcpu.root().snapshot();
    let text = snapshot.folded().to_string();
    let lines = frames(&text);
    let sum = |lines: &[(Vec<&str>, u64)]| lines.iter().map(|(_, bytes)| bytes).sum::<u64>();
    assert_eq!(sum(&lines), pcpu.root().current());
    let places: BTreeSet<_> = lines.iter().map(|(frames, _)| frames).collect();
    assert_eq!(places.len(), lines.len());
    assert!(lines.iter().all(|(frames, _)| frames[0] == "/" && frames.len() <= 5));
    let of_tenant = lines.iter().filter(|(frames, _)| frames.get(1) == Some(&"tenant")).count();
    assert_eq!(of_tenant, lines.len() - 1);
    assert!(lines.contains(&(vec!["/", "tenant", "[charged]", "rows"], 20)));
    assert!(lines.contains(&(vec!["/", "tenant", r"\u{5b}percpu]", "[charged]"], 50_000)));
    for depth in 0..3 {
        let text = snapshot.folded().depth(depth).to_string();
        let lines = frames(&text);
        assert_eq!(sum(&lines), pcpu.root().current());
        assert!(lines.iter().all(|(frames, _)| frames.len() <= depth + 3));
    }
}
