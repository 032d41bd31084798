"""Shows that trainers read the exports of `qwq-batch synthesize`: a few steps of each method."""
