//! Whether the kubelet may run on a node that swaps (`failSwapOn`).

/// Why it may not, in upstream's words; `None` when it may. `swaps` is what `/proc/swaps` says, empty where there is none.
#[must_use]
pub fn refusal(fail_on_swap: bool, swaps: &str) -> Option<&'static str> {
    // The first line is the table's head.
    let is_on = swaps.trim().lines().count() > 1;
    (fail_on_swap && is_on).then_some(
        "running with swap on is not supported, please disable swap or set --fail-swap-on flag to false",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_swaps_is_refused_unless_that_is_allowed() {
        let head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        let on = format!("{head}/dev/dm-1 partition 16760828 0 -2\n");
        assert!(
            refusal(true, &on).is_some_and(|text| text.starts_with("running with swap on is not supported"))
        );
        assert_eq!(refusal(false, &on), None);
        assert_eq!(refusal(true, head), None);
        assert_eq!(refusal(true, ""), None);
    }
}
