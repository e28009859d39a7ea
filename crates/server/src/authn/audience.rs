//! Audiences of credentials that say nothing of audiences: they are meant for the API server.

/// Those of the `wanted` audiences that such credentials are good for; the API server's own where none are wanted. None
/// where they are meant for others.
#[must_use]
pub(super) fn good_for(api_audiences: &[String], wanted: &[String]) -> Option<Vec<String>> {
    if wanted.is_empty() {
        return Some(api_audiences.to_vec());
    }
    let good: Vec<String> = wanted.iter().filter(|a| api_audiences.contains(a)).cloned().collect();
    (!good.is_empty()).then_some(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meant_for_the_api_server() {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let own = list(&["api", "other"]);
        assert_eq!(good_for(&own, &[]), Some(own.clone()));
        assert_eq!(good_for(&own, &list(&["x", "api"])), Some(list(&["api"])));
        assert_eq!(good_for(&own, &list(&["x"])), None);
    }
}
