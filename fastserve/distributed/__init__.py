"""Device groups: who holds what, the processes that drive devices, and how they meet."""
