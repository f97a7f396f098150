//! A loop of compare and exchange.

/// What `try_update` of Rust's atomics does, which this crate's oldest Rust does not have: stores
/// what `$next` makes of the value, or leaves it if that is `None`. It returns the value before, as
/// `Ok` or as `Err`. It works for the atomics of model checkers as well.
macro_rules! try_update {
    ($atomic:expr, $set:expr, $get:expr, $next:expr) => {{
        let (atomic, next) = (&$atomic, $next);
        let mut found = atomic.load($get);
        loop {
            match next(found).map(|new| atomic.compare_exchange_weak(found, new, $set, $get)) {
                None => break Err(found),
                Some(Ok(before)) => break Ok(before),
                Some(Err(now)) => found = now,
            }
        }
    }};
}
pub(crate) use try_update;
