"""From records to numbers, figures, pictures and pages; nothing is decided here."""
