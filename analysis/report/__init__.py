"""From an analysis to figures, tables, the leaderboard and one page."""
