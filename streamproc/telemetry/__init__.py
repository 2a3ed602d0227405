"""What is told of the running: metrics, traces, and how both leave a process. It decides nothing."""
