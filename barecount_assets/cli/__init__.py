"""The `barecount` command. Heavy libraries are imported by the verb that needs them."""
