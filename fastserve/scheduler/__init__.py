"""Who runs in the next step. Plain Python over a fake or a real clock: time is passed in."""
