//! The life of a pod on its node.

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Seen, not yet admitted.
    New,
    /// Admitted: sandbox, volumes and containers are made and kept as the spec wants them.
    Active,
    /// Containers are being stopped.
    Terminating,
    /// Nothing runs any more and the status is final; the object still exists.
    Terminated,
    /// Everything is removed.
    Gone,
}

impl State {
    /// Whether the life may go on like this.
    pub(crate) fn may_become(self, next: State) -> bool {
        use State::*;
        matches!(
            (self, next),
            (New, Active | Terminating | Terminated)
                | (Active, Terminating)
                | (Terminating, Terminated)
                | (Terminated, Gone)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::State::*;

    #[test]
    fn nothing_comes_back_to_life() {
        let all = [New, Active, Terminating, Terminated, Gone];
        for (i, from) in all.iter().enumerate() {
            for (j, to) in all.iter().enumerate() {
                assert!(!from.may_become(*to) || j > i, "{from:?} -> {to:?}");
            }
        }
        assert!(New.may_become(Active) && Active.may_become(Terminating) && Terminated.may_become(Gone));
        assert!(!Active.may_become(Gone), "what runs must be stopped first");
    }
}
