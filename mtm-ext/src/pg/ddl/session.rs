//! What this session is to the cluster, until the commit path tells: `multimaster.ddl_test`,
//! empty or `<node>/<stride>`.

use mtm_core::NodeId;
use mtm_core::sequence::Share;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::CString;

static DDL_TEST: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

pub(crate) fn define_settings() {
    GucRegistry::define_string_guc(
        c"multimaster.ddl_test",
        c"Captures DDL as node <node> of <stride>.",
        c"",
        &DDL_TEST,
        GucContext::Suset,
        GucFlags::default(),
    );
}

/// Whether this session's changes go to the peers.
pub(crate) fn replicates() -> bool {
    share().is_some()
}

/// This transaction must be announced.
pub(crate) fn mark_replicable() {}

/// Which values of every sequence are this node's.
pub(crate) fn share() -> Option<Share> {
    let text = DDL_TEST.get()?;
    let (node, stride) = text.to_str().ok()?.split_once('/')?;
    Share::new(NodeId::new(node.parse().ok()?)?, stride.parse().ok()?)
}
