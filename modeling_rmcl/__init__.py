"""RMCL vision-and-language models: configurations, encoders, heads and losses."""
