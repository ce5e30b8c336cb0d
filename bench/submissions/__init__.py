"""Records bundled for the leaderboard, and all of it recomputed."""
