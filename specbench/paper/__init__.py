"""Published tables and figures of the survey, the leaderboards and the methods' papers, next to measured runs."""
