//! Which tolerations say what others say already.

use gantry_api::k8s_openapi::api::core::v1::Toleration;

/// Whether a pod that tolerates what `strong` says also tolerates what `weak` says.
pub(super) fn includes(strong: &Toleration, weak: &Toleration) -> bool {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    if text(&strong.key) == text(&weak.key)
        && text(&strong.operator) == text(&weak.operator)
        && text(&strong.value) == text(&weak.value)
        && text(&strong.effect) == text(&weak.effect)
        && strong.toleration_seconds == weak.toleration_seconds
    {
        return true;
    }
    if !text(&strong.key).is_empty() && text(&strong.key) != text(&weak.key) {
        return false;
    }
    if !text(&strong.effect).is_empty() && text(&strong.effect) != text(&weak.effect) {
        return false;
    }
    if text(&strong.effect) == "NoExecute"
        && let Some(seconds) = strong.toleration_seconds
        && weak.toleration_seconds.is_none_or(|w| seconds < w)
    {
        return false;
    }
    match text(&strong.operator).as_str() {
        "" | "Equal" => {
            matches!(text(&weak.operator).as_str(), "" | "Equal") && text(&strong.value) == text(&weak.value)
        }
        "Exists" => true,
        _ => false,
    }
}

/// Both lists without what another entry says already.
pub(super) fn merge(own: Vec<Toleration>, more: Vec<Toleration>) -> Vec<Toleration> {
    let all: Vec<Toleration> = own.into_iter().chain(more).collect();
    let mut merged: Vec<Toleration> = Vec::new();
    for (i, t) in all.iter().enumerate() {
        let said = merged.iter().any(|m| includes(m, t));
        // Of two that say the same the later one is dropped, so that only a later, wider one displaces an earlier one.
        let said_later = all[i + 1..].iter().any(|later| includes(later, t) && !includes(t, later));
        if !said && !said_later {
            merged.push(t.clone());
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_merged_without_repetition() {
        let t = |key: &str, operator: &str, value: &str| Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()).filter(|v: &String| !v.is_empty()),
            ..Default::default()
        };
        let keys = |merged: &[Toleration]| -> Vec<String> {
            merged.iter().map(|t| format!("{}{}", t.key.clone().unwrap(), t.operator.clone().unwrap())).collect()
        };
        let merged =
            merge(vec![t("a", "Equal", "1"), t("b", "Exists", "")], vec![t("a", "Exists", ""), t("b", "Equal", "x")]);
        assert_eq!(keys(&merged), ["bExists", "aExists"]);
        assert_eq!(merge(vec![t("a", "Equal", "1")], vec![t("a", "Equal", "1")]).len(), 1);
        assert_eq!(merge(vec![t("a", "Equal", "1")], vec![t("a", "Equal", "2")]).len(), 2);
    }
}
