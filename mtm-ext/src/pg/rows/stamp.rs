//! Whether something derived from the catalogs still holds.
//!
//! PostgreSQL tells every process which relations have changed. The callbacks only count, so they
//! may come at any moment; what was derived remembers the counts it was derived under.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use pgrx::{pg_guard, pg_sys};

const SLOTS: usize = 1024;

static RELATIONS: [AtomicU64; SLOTS] = [const { AtomicU64::new(0) }; SLOTS];
/// Everything may have changed.
static ALL: AtomicU64 = AtomicU64::new(0);
/// A type may have changed.
static TYPES: AtomicU64 = AtomicU64::new(0);
/// Any of the above.
static TICKS: AtomicU64 = AtomicU64::new(0);

/// The counts under which something was derived. Counts only grow, so equal sums are equal counts;
/// two relations in one slot cost a needless derivation, never a stale one.
#[derive(Debug)]
pub(super) struct Stamp {
    relations: Vec<usize>,
    types: bool,
    sum: Option<u64>,
    began: u64,
}

impl Stamp {
    /// Before anything is read from the catalogs.
    pub(super) fn begin(relid: pg_sys::Oid) -> Self {
        register();
        let began = TICKS.load(Relaxed);
        Self { relations: vec![slot(relid)], types: false, sum: None, began }
    }

    /// It depends on another relation too.
    pub(super) fn depends_on(&mut self, relid: pg_sys::Oid) {
        self.relations.push(slot(relid));
    }

    /// It depends on a user's type.
    pub(super) const fn depends_on_types(&mut self) {
        self.types = true;
    }

    /// All has been read. What changed meanwhile makes it stale at once.
    pub(super) fn seal(&mut self) {
        self.sum = (TICKS.load(Relaxed) == self.began).then(|| self.count());
    }

    /// Whether nothing has changed.
    pub(super) fn holds(&self) -> bool {
        self.sum == Some(self.count())
    }

    fn count(&self) -> u64 {
        let types = if self.types { TYPES.load(Relaxed) } else { 0 };
        let relations = self.relations.iter().map(|slot| RELATIONS[*slot].load(Relaxed));
        relations.sum::<u64>() + types + ALL.load(Relaxed)
    }
}

fn slot(relid: pg_sys::Oid) -> usize {
    relid.to_u32() as usize % SLOTS
}

fn register() {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if REGISTERED.swap(true, Relaxed) {
        return;
    }
    let none = pg_sys::Datum::from(0);
    // SAFETY: the callbacks live as long as the process and touch only atomics.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), none);
        let (types, schemas) =
            (pg_sys::SysCacheIdentifier::TYPEOID, pg_sys::SysCacheIdentifier::NAMESPACEOID);
        pg_sys::CacheRegisterSyscacheCallback(types as i32, Some(type_changed), none);
        pg_sys::CacheRegisterSyscacheCallback(schemas as i32, Some(schema_changed), none);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, relid: pg_sys::Oid) {
    let counter = if relid == pg_sys::InvalidOid { &ALL } else { &RELATIONS[slot(relid)] };
    counter.fetch_add(1, Relaxed);
    TICKS.fetch_add(1, Relaxed);
}

#[pg_guard]
unsafe extern "C-unwind" fn type_changed(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    TYPES.fetch_add(1, Relaxed);
    TICKS.fetch_add(1, Relaxed);
}

#[pg_guard]
unsafe extern "C-unwind" fn schema_changed(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    ALL.fetch_add(1, Relaxed);
    TICKS.fetch_add(1, Relaxed);
}
