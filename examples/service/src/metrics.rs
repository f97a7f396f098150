//! `/metrics`: what tenants were answered, and all figures of the tree and of the allocator.

use std::fmt;
use std::sync::{Arc, Weak};

use percpu_memcg::PerCpuAllocator;
use percpu_memcg::integrations::prometheus_client::{
    AllocatorCollector, AsHistogram, TreeCollector,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::figures::Operation;
use crate::room;
use crate::service::Service;
use crate::tenants::Tenant;

/// Of a service that is about to exist.
pub fn registry(pcpu: &PerCpuAllocator, service: &Weak<Service>) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(OfTenants(Weak::clone(service))));
    // The root, the service, and each tenant: no series for what may be below them.
    registry.register_collector(Box::new(TreeCollector::new(&pcpu.root()).depth(2)));
    registry.register_collector(Box::new(AllocatorCollector::new(pcpu)));
    registry
}

/// Tenants come and go, so that their metrics are collected, and not registered.
#[derive(Debug)]
struct OfTenants(Weak<Service>);

impl Collector for OfTenants {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(service) = self.0.upgrade() else { return Ok(()) };
        let tenants = service.tenants.all();
        if !tenants.is_empty() {
            of_tenants(&mut encoder, &tenants)?;
        }
        let help = "Allocations beyond a limit that could not be refused";
        let mut metric =
            encoder.encode_descriptor("heap_exceeded", help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&room::exceeded(), None)
    }
}

fn of_tenants(encoder: &mut DescriptorEncoder<'_>, tenants: &[Arc<Tenant>]) -> fmt::Result {
    let help = "Answered requests by tenant and status";
    let mut metric =
        encoder.encode_descriptor("tenant_requests", help, None, MetricType::Counter)?;
    for tenant in tenants {
        for (answer, count) in tenant.figures.answers() {
            let labels = [("tenant", &*tenant.name), ("status", answer.status())];
            let mut metric = metric.encode_family(&labels)?;
            metric.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }

    let help = "Time from a request's head to its answer's";
    let unit = Some(&Unit::Seconds);
    let mut metric =
        encoder.encode_descriptor("tenant_latency", help, unit, MetricType::Histogram)?;
    for tenant in tenants {
        for operation in Operation::ALL {
            let labels = [("tenant", &*tenant.name), ("operation", operation.name())];
            let latency = AsHistogram(Arc::clone(tenant.figures.latency(operation)));
            latency.encode(metric.encode_family(&labels)?)?;
        }
    }

    type Gauge = (&'static str, &'static str, fn(&Tenant) -> usize);
    let gauges: [Gauge; 2] = [
        ("tenant_documents", "Documents that are kept", Tenant::nr_documents),
        ("tenant_requests_under_way", "Requests that are not answered yet", Tenant::nr_requests),
    ];
    for (name, help, value) in gauges {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for tenant in tenants {
            let labels = [("tenant", &*tenant.name)];
            metric.encode_family(&labels)?.encode_gauge(&(value(tenant) as u64))?;
        }
    }
    Ok(())
}
