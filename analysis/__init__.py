"""What the records mean: records -> fits -> figures, tables, leaderboard. Never imports torch."""
