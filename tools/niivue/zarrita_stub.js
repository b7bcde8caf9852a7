// NiiVue imports zarrita to read OME-Zarr from the network. The review page hands it arrays, so this stays out.
export const root = undefined;
export const FetchStore = undefined;
export const open = undefined;
export const get = undefined;
