"""What tests and users who check the engine need: a slow model that is obviously right, small models, comparisons."""
