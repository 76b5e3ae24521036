"""From requests to text: schedules, runs steps, and turns sampled ids into answers."""
