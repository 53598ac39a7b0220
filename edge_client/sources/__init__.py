"""Where readings come from: `replay` (the task's recordings, paced and repeated), `stdin` and
`mqtt` (live sensors). Each gives segments or readings to the inference loop and knows nothing
after it.
"""
