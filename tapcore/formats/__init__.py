"""What drivers of any format use; and how formats show themselves that have no driver here."""
