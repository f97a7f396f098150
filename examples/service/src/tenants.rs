//! The tenants, and how they come and go.
//!
//! A tenant has a cgroup below `/tenants`, documents, and figures. A request is admitted to a tenant, and
//! holds an [`Admitted`] until its answer was sent. A tenant that leaves admits no more requests. Its
//! name is free again when its cgroup was removed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use percpu_memcg::cgroup::RemovalReport;
use percpu_memcg::error::{AllocError, TreeError};
use percpu_memcg::{Limit, Memcg};
use serde::Serialize;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::figures::Figures;
use crate::room::{NoRoom, Room};

/// What is charged for a document beside its key and its bytes, where the heap is not charged: its entry in
/// the map, and its head.
const ENTRY_BYTES: usize = 128;

#[derive(Debug)]
pub struct Tenant {
    pub name: String,
    pub memcg: Memcg,
    pub figures: Figures,
    documents: RwLock<HashMap<String, Arc<Document>>>,
    requests: TaskTracker,
}

/// Bytes that are charged as long as a store or an answer holds them.
#[derive(Debug)]
pub struct Document {
    bytes: Vec<u8>,
    /// Dropped after the bytes.
    _room: Room,
}

impl AsRef<[u8]> for Document {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Document {
    pub fn new(key: &str, bytes: Vec<u8>, room: Room) -> Result<Self, NoRoom> {
        room.add(key.len() + ENTRY_BYTES)?;
        Ok(Document { bytes, _room: room })
    }
}

impl Tenant {
    /// Keeps a document. True when there was none of that name.
    pub fn put(&self, key: String, document: Document) -> bool {
        let document = Arc::new(document);
        let before = self.documents.write().unwrap().insert(key, document);
        // Freed here, and not under the lock.
        before.is_none()
    }

    pub fn get(&self, key: &str) -> Option<Arc<Document>> {
        self.documents.read().unwrap().get(key).cloned()
    }

    pub fn delete(&self, key: &str) -> Option<Arc<Document>> {
        self.documents.write().unwrap().remove(key)
    }

    pub fn nr_documents(&self) -> usize {
        self.documents.read().unwrap().len()
    }

    /// Requests under way, answers that are being sent included.
    pub fn nr_requests(&self) -> usize {
        self.requests.len()
    }

    fn clear(&self) {
        let documents = std::mem::take(&mut *self.documents.write().unwrap());
        drop(documents);
    }
}

/// A request of a tenant. The tenant waits for it before it leaves.
#[derive(Clone, Debug)]
pub struct Admitted {
    // Dropped before the token: when all tokens were dropped, no request holds the tenant.
    pub tenant: Arc<Tenant>,
    _token: Arc<TaskTrackerToken>,
}

/// Why a tenant was not found, created or removed.
#[derive(Debug)]
pub enum TenantError {
    Unknown,
    /// It is about to be removed.
    Leaving,
    /// Of the tree: the name, for example.
    Tree(TreeError),
    /// The limit has no room for the tenant's own figures.
    Figures(AllocError),
}

impl From<TreeError> for TenantError {
    fn from(error: TreeError) -> Self {
        TenantError::Tree(error)
    }
}

#[derive(Debug)]
enum Slot {
    Live(Arc<Tenant>),
    Leaving,
}

#[derive(Debug)]
pub struct Tenants {
    parent: Memcg,
    by_name: RwLock<BTreeMap<String, Slot>>,
}

/// What a tenant left.
#[derive(Debug, Serialize)]
pub struct Farewell {
    /// Requests that did not end in time. What they hold is charged to the parent until they do.
    pub requests_under_way: usize,
    /// What was still charged.
    pub left: RemovalReport,
    /// The same as text.
    pub text: String,
}

impl Tenants {
    /// Tenants are cgroups below `parent`.
    pub fn new(parent: Memcg) -> Self {
        Tenants { parent, by_name: RwLock::default() }
    }

    pub fn find(&self, name: &str) -> Result<Arc<Tenant>, TenantError> {
        match self.by_name.read().unwrap().get(name) {
            Some(Slot::Live(tenant)) => Ok(Arc::clone(tenant)),
            Some(Slot::Leaving) => Err(TenantError::Leaving),
            None => Err(TenantError::Unknown),
        }
    }

    /// Admits a request.
    pub fn admit(&self, name: &str) -> Result<Admitted, TenantError> {
        // Under the lock: a tenant that begins to leave sees the token, or admits no request.
        match self.by_name.read().unwrap().get(name) {
            Some(Slot::Live(tenant)) => {
                let token = Arc::new(tenant.requests.token());
                Ok(Admitted { tenant: Arc::clone(tenant), _token: token })
            }
            Some(Slot::Leaving) => Err(TenantError::Leaving),
            None => Err(TenantError::Unknown),
        }
    }

    pub fn all(&self) -> Vec<Arc<Tenant>> {
        let by_name = self.by_name.read().unwrap();
        let live = by_name.values().filter_map(|slot| match slot {
            Slot::Live(tenant) => Some(Arc::clone(tenant)),
            Slot::Leaving => None,
        });
        live.collect()
    }

    /// Creates a tenant, or sets its limits. True when it was created. May call reclaim hooks.
    pub fn set(&self, name: &str, max: Limit, high: Limit) -> Result<bool, TenantError> {
        let mut by_name = self.by_name.write().unwrap();
        let tenant = match by_name.get(name) {
            Some(Slot::Live(tenant)) => Arc::clone(tenant),
            Some(Slot::Leaving) => return Err(TenantError::Leaving),
            None => {
                let memcg = self.parent.create(name)?;
                let tenant = Tenant::new(name, &memcg, max, high).inspect_err(|_| {
                    memcg.remove().expect("it is new and empty");
                })?;
                by_name.insert(name.to_owned(), Slot::Live(Arc::new(tenant)));
                return Ok(true);
            }
        };
        drop(by_name);
        tenant.memcg.set_high(high)?;
        tenant.memcg.set_max(max)?;
        Ok(false)
    }

    /// Removes a tenant: admits no more requests, waits for those under way, removes what it keeps and then
    /// its cgroup.
    ///
    /// The future must not be dropped halfway: it runs in a task of its own.
    pub async fn remove(&self, name: &str, time: Duration) -> Result<Farewell, TenantError> {
        let tenant = {
            let mut by_name = self.by_name.write().unwrap();
            let slot = by_name.get_mut(name).ok_or(TenantError::Unknown)?;
            match std::mem::replace(slot, Slot::Leaving) {
                Slot::Live(tenant) => tenant,
                Slot::Leaving => return Err(TenantError::Leaving),
            }
        };
        tenant.requests.close();
        let _in_time = tokio::time::timeout(time, tenant.requests.wait()).await;
        let requests_under_way = tenant.requests.len();

        tenant.clear();
        let memcg = tenant.memcg.clone();
        // With its figures, unless a request under way holds them.
        drop(tenant);
        let removed = memcg.remove_with_report();
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        let left = removed?;
        let text = left.to_string();
        Ok(Farewell { requests_under_way, left, text })
    }
}

impl Tenant {
    fn new(name: &str, memcg: &Memcg, max: Limit, high: Limit) -> Result<Self, TenantError> {
        memcg.set_high(high)?;
        memcg.set_max(max)?;
        Ok(Tenant {
            name: name.to_owned(),
            figures: Figures::new(memcg).map_err(TenantError::Figures)?,
            memcg: memcg.clone(),
            documents: RwLock::default(),
            requests: TaskTracker::new(),
        })
    }
}
