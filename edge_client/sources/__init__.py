"""Where readings come from: `replay` (the task's recordings, paced and repeated), `live` (a task's
sensor, standard input, and which source a device reads) and `mqtt`. Each gives segments or readings
to the inference loop and knows nothing after it.
"""
