"""DICOM: series to images, predictions to segmentations and parametric maps, edited segmentations to answers."""
