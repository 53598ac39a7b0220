"""From a canary to all devices, or back: `rollout` makes one decision after the other, `declined`
looks at a released version, `stage_policy` evaluates a canary, `sequential_test` has the
statistics, `window_history` the data.
"""
