"""Hand rules: mixes, wishes and floors."""
