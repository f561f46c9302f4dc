"""Programs that measure the losses on the present device."""
