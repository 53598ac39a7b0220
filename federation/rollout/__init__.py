"""From a canary to all devices, or back: `rollout` takes one decision after the other,
`stage_policy` decides whether a canary passes or goes back, `sequential_test` is its statistics,
`window_history` what it is judged by.
"""
