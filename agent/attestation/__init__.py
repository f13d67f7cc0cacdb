"""TPM evidence as pure values: parsing, credential activation, appraisal."""
