"""Growth between models: dense → MoE, bilateral growth, and the checks that nothing was lost."""
