-- Orthanc sends every ultrasound series to the node once no more of it has come for StableAge
-- seconds, and never what the node has sent. In Orthanc's configuration:
--
--   "LuaScripts": ["/etc/orthanc/orthanc.lua"]
--
-- and the node among the DicomModalities as "despeckle". A series that could not be sent (node
-- down) is a failed job in Orthanc: resubmit it there once the node is up.

local MODALITY = 'despeckle'   -- key of the node in DicomModalities
local AE_TITLE = 'DESPECKLE'   -- node.ae_title of the node's configuration

function OnStableSeries(series, tags, metadata)
   if tags['Modality'] == 'US' and metadata['RemoteAET'] ~= AE_TITLE then
      local job = { Resources = { series }, Asynchronous = true }
      RestApiPost('/modalities/' .. MODALITY .. '/store', DumpJson(job, true), true)
   end
end
