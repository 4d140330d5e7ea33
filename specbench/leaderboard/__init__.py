"""The leaderboard: runs of several machines, targets and versions on one page. Only comparable rows are ranked."""
