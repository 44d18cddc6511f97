"""From what a user asks for to the problem that is searched: the joint budget of weights, head and cache."""
