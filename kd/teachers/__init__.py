"""Who labels: a trained or published model, or a black box's answers."""
