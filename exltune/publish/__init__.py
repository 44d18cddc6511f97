"""Publication: the model card and the repository on the Hugging Face Hub."""
