"""What was published: tables and figures of the survey, leaderboards and the methods' papers; measured runs beside them."""
