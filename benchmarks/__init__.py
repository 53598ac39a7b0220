"""Programs that measure and print; no test knows them, and no page grows old by a change."""
