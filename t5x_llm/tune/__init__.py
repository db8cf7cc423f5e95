"""Ways of training a model that exists already; each brings its own rounds or losses."""
