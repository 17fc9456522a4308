"""The remote modules of a split model, faster where they compute here."""
