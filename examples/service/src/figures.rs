//! What is counted of each tenant: answers and latencies, in per-CPU memory that the tenant pays for.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use percpu_memcg::Memcg;
use percpu_memcg::counter::{
    CounterIndex, HistogramSnapshot, PerCpuCounters, PerCpuHistogram, exponential_bounds,
};
use percpu_memcg::error::{AllocError, HistogramError};

/// From 64 µs to some 33 s.
pub const BUCKETS: usize = 20;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Get,
    Put,
    Delete,
    Summary,
}

impl Operation {
    pub const ALL: [Operation; 4] =
        [Operation::Get, Operation::Put, Operation::Delete, Operation::Summary];

    pub fn of(method: &Method) -> Self {
        match *method {
            Method::PUT => Operation::Put,
            Method::DELETE => Operation::Delete,
            Method::POST => Operation::Summary,
            _ => Operation::Get,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::Put => "put",
            Operation::Delete => "delete",
            Operation::Summary => "summary",
        }
    }
}

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Ok,
    Created,
    NoContent,
    BadRequest,
    NotFound,
    Timeout,
    TooLarge,
    Unprocessable,
    NoRoom,
    Unavailable,
    Other,
}

impl CounterIndex<11> for Answer {
    const ALL: [Self; 11] = [
        Answer::Ok,
        Answer::Created,
        Answer::NoContent,
        Answer::BadRequest,
        Answer::NotFound,
        Answer::Timeout,
        Answer::TooLarge,
        Answer::Unprocessable,
        Answer::NoRoom,
        Answer::Unavailable,
        Answer::Other,
    ];

    fn index(self) -> usize {
        self as usize
    }
}

impl Answer {
    pub fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            200 => Answer::Ok,
            201 => Answer::Created,
            204 => Answer::NoContent,
            400 => Answer::BadRequest,
            404 => Answer::NotFound,
            408 => Answer::Timeout,
            413 => Answer::TooLarge,
            422 => Answer::Unprocessable,
            429 => Answer::NoRoom,
            503 => Answer::Unavailable,
            _ => Answer::Other,
        }
    }

    /// The label in metrics.
    pub fn status(self) -> &'static str {
        match self {
            Answer::Ok => "200",
            Answer::Created => "201",
            Answer::NoContent => "204",
            Answer::BadRequest => "400",
            Answer::NotFound => "404",
            Answer::Timeout => "408",
            Answer::TooLarge => "413",
            Answer::Unprocessable => "422",
            Answer::NoRoom => "429",
            Answer::Unavailable => "503",
            Answer::Other => "other",
        }
    }
}

/// Counting takes no atomic instruction, on whatever CPU the request is answered.
#[derive(Debug)]
pub struct Figures {
    answers: PerCpuCounters<11, Answer>,
    /// In the order of [`Operation::ALL`].
    latencies: [std::sync::Arc<PerCpuHistogram<BUCKETS, Duration>>; 4],
}

impl Figures {
    /// Fails when the tenant's limit has no room for them.
    pub fn new(memcg: &Memcg) -> Result<Self, AllocError> {
        let bounds = exponential_bounds(Duration::from_micros(64), 2.0);
        let histogram = || match PerCpuHistogram::new_for(memcg, bounds) {
            Ok(histogram) => Ok(histogram.into()),
            Err(HistogramError::Alloc(error)) => Err(error),
            Err(error) => unreachable!("the bounds ascend: {error}"),
        };
        Ok(Figures {
            answers: PerCpuCounters::new_for(memcg)?,
            latencies: [histogram()?, histogram()?, histogram()?, histogram()?],
        })
    }

    /// Counts a request.
    pub fn count(&self, operation: Operation, status: StatusCode, latency: Duration) {
        self.answers.inc(Answer::of(status));
        self.latency(operation).record(latency);
    }

    /// How often each answer was given.
    pub fn answers(&self) -> impl Iterator<Item = (Answer, u64)> {
        self.answers.iter().map(|(answer, count)| (answer, count.max(0).cast_unsigned()))
    }

    pub fn latency(
        &self,
        operation: Operation,
    ) -> &std::sync::Arc<PerCpuHistogram<BUCKETS, Duration>> {
        &self.latencies[operation as usize]
    }

    /// Of all operations together.
    pub fn latencies(&self) -> HistogramSnapshot<BUCKETS, Duration> {
        let [mut all, rest @ ..] =
            Operation::ALL.map(|operation| self.latency(operation).snapshot());
        for seen in rest {
            all.counts.iter_mut().zip(seen.counts).for_each(|(all, count)| *all += count);
            all.over += seen.over;
            all.sum += seen.sum;
        }
        all
    }
}
