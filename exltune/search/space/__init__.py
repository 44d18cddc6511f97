"""From a user's request to the problem that is searched: the joint budget of weights, head and cache."""
