"""What users of Gristmill test their own plug-ins with: contract suites, fakes, tiny models."""
