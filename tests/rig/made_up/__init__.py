"""Made-up tasks, models, documents and messages, and fakes of what is not there."""
