"""Publication on the Hub: model and dataset cards, staged repositories, push, leaderboard."""
