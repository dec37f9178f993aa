//! The rules of the referee, for two data nodes and one grant (TLA+ `OneGrant`).

use mtm_core::{GenNum, NodeId};

/// The grant: this node may form a generation alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Grant {
    /// Who may.
    pub node: NodeId,
    /// For which generation it asked.
    pub num: GenNum,
}

/// Someone else holds the grant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[error("grant was already issued to node {} in generation {}", .0.node, .0.num)]
pub struct AlreadyGranted(pub Grant);

/// What the referee's table holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Referee {
    grant: Option<Grant>,
}

impl Referee {
    /// No grant.
    pub const fn new() -> Self {
        Self { grant: None }
    }

    /// The table's row.
    pub const fn grant(&self) -> Option<Grant> {
        self.grant
    }

    /// Asks for the grant. The same node may ask again, for any generation.
    ///
    /// # Errors
    /// When another node holds it.
    pub fn request(&mut self, node: NodeId, num: GenNum) -> Result<(), AlreadyGranted> {
        if let Some(held) = self.grant.filter(|held| held.node != node) {
            return Err(AlreadyGranted(held));
        }
        // A late request must not lower the number: `clean` compares with it.
        let num = self.grant.map_or(num, |held| held.num.max(num));
        self.grant = Some(Grant { node, num });
        Ok(())
    }

    /// Both nodes are ONLINE in full generation `num`: an older grant has served. A newer one
    /// stays, however late this call arrives.
    pub fn clean(&mut self, num: GenNum) {
        self.grant = self.grant.filter(|held| held.num >= num);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_holds_it_until_cleaned_and_a_delayed_clean_frees_nothing_newer() {
        let (a, b) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
        let mut referee = Referee::new();
        assert_eq!(referee.request(a, GenNum(5)), Ok(()));
        assert!(referee.request(b, GenNum(6)).is_err());
        referee.clean(GenNum(5));
        assert_eq!(referee.grant().map(|g| g.node), Some(a));
        assert_eq!(referee.request(a, GenNum(9)), Ok(()));
        assert_eq!(referee.request(a, GenNum(7)), Ok(()));
        referee.clean(GenNum(8));
        assert!(referee.request(b, GenNum(10)).is_err());
        referee.clean(GenNum(10));
        assert_eq!(referee.request(b, GenNum(11)), Ok(()));
    }
}
