"""Published measurements: tables read, predictions scored, a machine calibrated."""
