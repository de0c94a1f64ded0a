"""Pictures: opened, prepared and classified."""
