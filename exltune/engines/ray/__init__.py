"""Any engine on a Ray cluster, behind the engine protocol."""
